"""python main.py fit --config configs/article_gpt.yaml"""

from lightning_app.cli import main

if __name__ == "__main__":
    main()
